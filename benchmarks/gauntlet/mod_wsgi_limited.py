"""mod_wsgi-express with `memory-limit`, for which it has no option.

The limit is of the directive WSGIDaemonProcess alone. So: have the configuration written, add the
limit, and become Apache. The first argument is the limit in bytes; the others mod_wsgi-express's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def main() -> None:
    memory, *words = sys.argv[1:]
    express = Path(sys.executable).with_name("mod_wsgi-express")
    subprocess.run([express, "setup-server", *words], check=True)
    root = Path(words[words.index("--server-root") + 1])
    configuration = root / "httpd.conf"
    text = configuration.read_text()
    limits = f"threads=3 \\\n   memory-limit={memory} \\\n"
    assert "threads=3 \\\n" in text, "mod_wsgi-express writes its configuration otherwise now"
    configuration.write_text(text.replace("threads=3 \\\n", limits))
    os.execl(root / "apachectl", "apachectl", "start", "-DFOREGROUND")


if __name__ == "__main__":
    main()
