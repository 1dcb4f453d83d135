"""The models of a repository as one file declares them: applied to it, and verified on a server."""

from bilateral_serving.declared.apply import Applied as Applied
from bilateral_serving.declared.apply import apply as apply
from bilateral_serving.declared.document import Declared as Declared
from bilateral_serving.declared.document import read as read
from bilateral_serving.declared.document import schema as schema
from bilateral_serving.declared.verify import Verdict as Verdict
from bilateral_serving.declared.verify import verify as verify
