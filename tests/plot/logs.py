"""Logs as JSON lines, and the numbers that a log holds."""

import json

from jaxclip.plot.log import Log


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def values(metrics, key):
    steps, found = Log(metrics).series(key)
    return list(zip(steps.tolist(), found.tolist(), strict=True))
