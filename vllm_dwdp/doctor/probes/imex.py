# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What nvidia-imex, which carries fabric handles between hosts, says of itself."""

import subprocess


def look() -> str:
    """The state that `nvidia-imex-ctl -q` prints; READY if all is well."""
    done = subprocess.run(
        ["nvidia-imex-ctl", "-q"], capture_output=True, text=True, check=False, errors="replace"
    )
    return " ".join((done.stdout + done.stderr).split())
