#!/usr/bin/env bash
# Train the preset `small` for a time and leave what is worth keeping in a few small files.
#
#   scripts/train_small.sh DATA OUT SECONDS [OPTION...]
#
# DATA     folder of photographs
# OUT      gets model.safetensors (float16) with config.json, weights.safetensors (to go on from: --init-from OUT),
#          metrics.jsonl, losses.png, samples.png
# SECONDS  of training; starting and writing come on top
# OPTION   of `fastinpaint train`, e.g. --pause-seconds 120 --losses.adversarial 0
#
# The run itself lies in $RUN (default: runs/small). If it holds a checkpoint, the run goes on from there; so a call
# with --pause-seconds and then the same call again train one schedule in two pieces. SIGTERM saves, too.
# A run that does not end SPARE (90) seconds after its time, or 45 s after SIGTERM, prints its stacks and is killed.
# Should the run fail before its time is over, it is tried once more with plain updates instead of a CUDA graph.
set -u
DATA=$1 OUT=$2 SECONDS_WANTED=$3
shift 3
RUN=${RUN:-runs/small}
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}"

child= stopped=
stop() { # let the run save; one that has not ended 45 s later shows its stacks and is killed: a lease must not hang
    stopped=1
    [ -n "$child" ] || return
    kill -TERM "$child" 2>/dev/null
    (
        sleep 45
        kill -ABRT "$child" 2>/dev/null && sleep 5
        kill -KILL "$child" 2>/dev/null
    ) &
}
trap stop TERM INT
export PYTHONFAULTHANDLER=1
(
    sleep $((SECONDS_WANTED + ${SPARE:-90})) # SPARE: seconds for imports, decoding and the last pictures
    kill -TERM $$ 2>/dev/null
) &
watchdog=$!

train() {
    local resume=()
    compgen -G "$RUN/checkpoints/step-*.pt" >/dev/null && resume=(--resume)
    "$PYTHON" -m fastinpaint train --config "${CONFIG:-small}" --data "$DATA" --output "$RUN" \
        --max-seconds "$SECONDS_WANTED" "${resume[@]}" "$@" &
    child=$!
    local code
    wait "$child"
    code=$?
    while kill -0 "$child" 2>/dev/null; do # a signal ended the wait, not the child, which is saving
        wait "$child"
        code=$?
    done
    return "$code"
}

train "$@"
code=$?
if [ "$code" -ne 0 ] && [ "$code" -ne 130 ] && [ -z "$stopped" ]; then
    echo "train_small: training ended with $code; once more without a CUDA graph" >&2
    train "$@" --cuda-graph off
    code=$?
fi
kill "$watchdog" 2>/dev/null
"$PYTHON" -m fastinpaint.training.export "$RUN" "$OUT" || code=1
exit "$code"
