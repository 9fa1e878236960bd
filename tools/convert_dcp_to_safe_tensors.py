"""The name by which the published README calls convert_dcp_to_safetensors.py."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("convert_dcp_to_safetensors.py")), run_name="__main__")
