#!/usr/bin/env bash
# Everything about the GPU scan in one call, on a machine with a CUDA device, torch, Triton and NumPy:
# kernels checked on fresh random input, then timed; machine code counted; tests marked "gpu".
#
#   benchmarks/gpu_report.sh [OUT]        result files go to OUT (default benchmarks/results)
#
# Needs no network and installs nothing. Each step runs even if the one before failed; ends within ten minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:-benchmarks/results}"
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=.
failed=()

step() { # step NAME SECONDS COMMAND...: run with a limit, remember a failure
    local name="$1" limit="$2"
    shift 2
    echo "== $name"
    timeout --kill-after=5 "$limit" "$@" || failed+=("$name ($?)")
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
python3 -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, torch.cuda.is_available())'

step "kernel tests on the device" 90 python3 -m pytest tests/kernels/test_on_device.py -q -p no:cacheprovider
step "scan" 450 python3 -m benchmarks.gpu_report --budget 400 --tiles "$out/gpu_tiles.json" --out "$out/scan_gpu.json"
for rival in flash_maxsim late_interaction_kernels fast_plaid; do
    python3 -c "import $rival" 2>/dev/null && echo "installed and not timed: $rival" || echo "not installed: $rival"
done

if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all done"
