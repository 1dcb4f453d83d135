"""Files that deploy a served model: Kubernetes, KServe, Docker Compose and Docker."""

from bilateral_serving.deploy.diff import diff as diff
from bilateral_serving.deploy.render import KINDS as KINDS
from bilateral_serving.deploy.render import Kind as Kind
from bilateral_serving.deploy.render import render as render
from bilateral_serving.deploy.render import write as write
