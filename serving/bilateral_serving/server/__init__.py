"""The real tritonserver on a model repository: started, watched, started again, and ended."""

from bilateral_serving.server.loading import Progress as Progress
from bilateral_serving.server.processes.launch_command import ServerOptions as ServerOptions
from bilateral_serving.server.run import Signals as Signals
from bilateral_serving.server.run import running as running
from bilateral_serving.server.run import serve as serve
from bilateral_serving.server.run import signals_counted as signals_counted
from bilateral_serving.server.service import RunningServer as RunningServer
