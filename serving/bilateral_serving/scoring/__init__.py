"""Archives of files scored by a model file, without a server: Ray Data, resumable, into Parquet.

`bilateral score-files` calls `score_files`. Only this room imports Ray and pyarrow (the extra
`ray`), and nothing else of this package imports it.
"""

from bilateral_serving.scoring.model import load_model as load_model
from bilateral_serving.scoring.run import Summary as Summary
from bilateral_serving.scoring.run import score_files as score_files
from bilateral_serving.scoring.size import Wanted as Wanted
