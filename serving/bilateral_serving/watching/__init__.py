"""A running server's metrics page, read and made a table: `bilateral top`."""

from bilateral_serving.watching.page import page as page
from bilateral_serving.watching.scrape import Snapshot as Snapshot
from bilateral_serving.watching.scrape import parse as parse
from bilateral_serving.watching.scrape import scrape as scrape
from bilateral_serving.watching.view import Row as Row
from bilateral_serving.watching.view import View as View
from bilateral_serving.watching.view import view as view
