# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A Prometheus that scrapes a server every second."""

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request

from vllm_dwdp.bench.ports import free_port

READY_S = 60


class Prometheus:
    """Runs until `stop`. folder: for its settings and its data."""

    def __init__(self, folder, target_port):
        self._port = free_port()
        config = {
            "global": {"scrape_interval": "1s"},
            "scrape_configs": [
                {"job_name": "vllm", "static_configs": [{"targets": [f"127.0.0.1:{target_port}"]}]}
            ],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        command = [shutil.which("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
        command += [f"--storage.tsdb.path={folder / 'data'}"]
        command += [f"--web.listen-address=127.0.0.1:{self._port}"]
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    def query(self, text):
        """The vector that a query gives, as the HTTP API says it."""
        url = (
            f"http://127.0.0.1:{self._port}/api/v1/query?{urllib.parse.urlencode({'query': text})}"
        )
        with urllib.request.urlopen(url, timeout=30) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]["result"]

    def wait_for(self, text):
        """Wait until a query gives something; returns that."""
        deadline = time.monotonic() + READY_S
        while True:
            try:
                if found := self.query(text):
                    return found
            except OSError:  # it is still starting
                assert self._process.poll() is None, "Prometheus has ended"
            assert time.monotonic() < deadline, f"{text} gives nothing"
            time.sleep(0.5)

    def stop(self):
        self._process.kill()
        self._process.wait()
