"""One rank of a preflight whose second rank computes with the instructions of a processor of 2006."""

import os
import sys

if os.environ["RANK"] == "1":
    os.environ["MKL_CBWR"] = "COMPATIBLE"  # read when MKL starts

from tools.slurm.preflight import main

os._exit(main(sys.argv[1:]))
