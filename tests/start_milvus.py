"""Become a Milvus server of the wheel `milvus==2.3.5`, as the very process that was started.

    .venv-milvus/bin/python tests/start_milvus.py FOLDER

The wheel's own program starts a child that outlives it. Here the process id is the server's, and killing it leaves
nothing behind. It listens on every interface: only for a network namespace that has none but its own.
"""

import os
import sys
from pathlib import Path

from milvus import MilvusServerConfig, _initialize_data_files


def main() -> None:
    """Write its configuration and replace this program by it."""
    folder = Path(sys.argv[1]).resolve()
    # Started again it must not choose ports again: those of the server that was killed are not free for a minute.
    if not (folder / "configs" / "milvus.yaml").exists():
        config = MilvusServerConfig(data_dir=str(folder))
        config.set("authorization_enabled", True)
        config.resolve()
        _initialize_data_files(str(folder))
    program = folder / "bin" / "milvus"
    os.chdir(folder)
    log = os.open(folder / "logs" / "out.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "DEPLOY_MODE": "STANDALONE",
        "METRICS_PORT": "9091",
        "MILVUS_RUN_DIR": str(folder / "run"),
        "LD_LIBRARY_PATH": str(folder / "bin"),
    }
    os.execve(program, [str(program), "run", "standalone"], environment)


if __name__ == "__main__":
    main()
