"""Rollouts of model versions on a running server: promote, rollback, canary, shadow."""

from bilateral_serving.rollout.commands import canary as canary
from bilateral_serving.rollout.commands import promote as promote
from bilateral_serving.rollout.commands import rollback as rollback
from bilateral_serving.rollout.commands import shadow as shadow
from bilateral_serving.rollout.commands import status as status
from bilateral_serving.rollout.report import read_share as read_share
