#!/usr/bin/env bash
# Everything about the GPU, on a machine with a CUDA device, torch, Triton and NumPy: kernels checked on fresh
# random input, then timed; whole requests and encoders on every backend that opens; tests marked "gpu".
#
#   benchmarks/gpu_report.sh [OUT [PART]]     result files go to OUT (default benchmarks/results);
#                                             PART is "scan", "link", "faults" or "all" (the default)
#
# Needs no network and installs nothing. Each step runs even if the one before failed; a part ends within ten minutes.
set -uo pipefail
cd "$(dirname "$0")/.."
out="${1:-benchmarks/results}"
part="${2:-all}"
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH=.
failed=()

step() { # step NAME SECONDS COMMAND...: run with a limit, remember a failure
    local name="$1" limit="$2"
    shift 2
    echo "== $name"
    timeout --kill-after=5 "$limit" "$@" || failed+=("$name ($?)")
}

scan() {
    step "tests on the device" 120 python3 -m pytest tests/kernels/test_on_device.py tests/gpu/test_on_device.py -q -rs -p no:cacheprovider
    step "scan" 430 python3 -m benchmarks.gpu.report --budget 380 --out "$out/scan_gpu.json"
    for rival in flash_maxsim late_interaction_kernels fast_plaid; do
        python3 -c "import $rival" 2>/dev/null && echo "installed and not timed: $rival" || echo "not installed: $rival"
    done
}

link() {
    step "requests, from pixels to ranked entities" 380 python3 -m benchmarks.gpu.link --budget 300 --out "$out/link_gpu.json"
    step "encoders" 190 python3 -m benchmarks.gpu.encoders --seconds 0.2 --out "$out/encoders.json"
}

faults() {
    # The same tests over both device layers, PyCUDA and cuda.core; each is left out, and named, where it is not installed.
    step "device layers" 120 python3 -m pytest tests/gpu/test_device.py -v -rs -p no:cacheprovider
    step "warm-up and faults" 380 python3 -m pytest tests/gpu/test_scan_on_device.py -q -p no:cacheprovider
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader || true
python3 -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__, torch.cuda.is_available())'

case "$part" in
    scan | link | faults) "$part" ;;
    all) scan; link; faults ;;
    *) echo "no part $part: scan, link, faults or all"; exit 2 ;;
esac

if [ ${#failed[@]} -gt 0 ]; then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "all done"
