"""The model repository: the directory of models and versions that Triton serves."""

from bilateral_serving.repository.adding import add as add
from bilateral_serving.repository.entries import Entry as Entry
from bilateral_serving.repository.entries import Version as Version
from bilateral_serving.repository.entries import list_entries as list_entries
from bilateral_serving.repository.entries import list_names as list_names
from bilateral_serving.repository.entries import remove as remove
from bilateral_serving.repository.entries import show as show
from bilateral_serving.repository.notes import notes_on as notes_on
from bilateral_serving.repository.raw_form import takes_files as takes_files
