#!/usr/bin/env bash
# Usage: bash launch/tpu_pod.sh NAME ZONE -- ARGUMENTS
#
# Runs python -m tvjax.main ARGUMENTS on every worker of the TPU slice NAME and follows worker 0. Makes the slice, or
# uses the one that is there; installs this checkout on it; and where the run does not end by itself (the slice was
# preempted, a worker died) makes the slice again if need be and starts the same command, which goes on from the last
# checkpoint. ARGUMENTS name --workdir=gs://BUCKET/RUN, which all workers see and which outlives the slice.
#
# Environment:
#   TPU_TYPE     accelerator type (v5litepod-16)
#   TPU_VERSION  runtime version (the one of that type)
#   TPU_OPTIONS  more options of gcloud for a new slice, e.g. '--spot --network=NAME' (none)
#   RESTARTS     how many times it is started again (10)
#   POLL         seconds between two looks at a slice that is not ready (15)
#   ENDING       seconds that the other workers have to end when one has ended badly, before they are killed (60)
#   LOGS         folder for what each worker says, N.log (a new one in the folder for temporary files)
#
# Exit codes are those of tvjax.main: 0 done, 2 the input is wrong, 3 the run cannot go on or there is no slice (after
# these it is not started again), 143 stopped by a signal to this script, which is passed on to the workers. Where it
# gives up the last code is given back.
# The slice is left as it is: gcloud compute tpus queued-resources delete NAME --zone=ZONE --force
set -euo pipefail

say() { echo "tvjax: $*" >&2; }

if [[ ${1:-} == --help ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
  exit 0
fi
if (($# < 4)) || [[ $1 == -* || $2 == -* || $3 != -- ]]; then
  say "command line: given '$*'; accepted: bash launch/tpu_pod.sh NAME ZONE -- --config=FILE --workdir=gs://BUCKET/RUN"
  exit 2
fi
name=$1 zone=$2
shift 3
if [[ " $*" != *" --workdir="* ]]; then
  say "--workdir: not given; accepted: --workdir=gs://BUCKET/RUN, from which a run that was started again goes on"
  exit 2
fi
type=${TPU_TYPE:-v5litepod-16}
case $type in
  v5lite*) version=v2-alpha-tpuv5-lite ;;
  v5p*) version=v2-alpha-tpuv5 ;;
  v6e*) version=v2-alpha-tpuv6e ;;
  *) version=tpu-ubuntu2204-base ;;
esac
version=${TPU_VERSION:-$version}
read -ra options <<<"${TPU_OPTIONS:-}"
restarts=${RESTARTS:-10} poll=${POLL:-15} ending=${ENDING:-60}
for number in "RESTARTS=$restarts" "POLL=${poll/./}" "ENDING=$ending"; do
  if [[ ! $number =~ =[0-9]+$ ]]; then
    say "${number%%=*}: given '${number#*=}'; accepted: a number"
    exit 2
  fi
done
logs=${LOGS:-$(mktemp -d)}
mkdir -p "$logs"
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Usage: tpus GROUP COMMAND ARGUMENTS
tpus() { gcloud compute tpus "$1" "$2" --zone="$zone" --quiet "${@:3}"; }
node_state() { tpus tpu-vm describe "$name" --format='value(state)' 2>/dev/null || true; }
request_state() { tpus queued-resources describe "$name" --format='value(state.state)' 2>/dev/null || true; }

# What is done on all workers at once. Usage: on_workers COMMAND [OPTIONS of gcloud]
on_workers() {
  tpus tpu-vm ssh "$name" --worker=all --batch-size=all --command="$1" "${@:2}" \
    -- -o ServerAliveInterval=30 -o ServerAliveCountMax=4
}

make_slice() {
  say "asking for $name ($type, $version) in $zone"
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" \
    "${options[@]}"
}

drop_slice() {
  say "$name is $1: deleting it"
  tpus queued-resources delete "$name" --force || true
  tpus tpu-vm delete "$name" 2>/dev/null || true  # gone with its request, if it had one
}

# Returns when the slice is ready, and fails where there will be none.
ready() {
  local node request asked=false
  while true; do
    node=$(node_state)
    case $node in
      READY) return 0 ;;
      PREEMPTED | TERMINATED) drop_slice "$node" ;;
      STOPPED) tpus tpu-vm start "$name" || return 1 ;;
      '')
        request=$(request_state)
        case $request in
          '') # where it could not be made it may be there, and not have answered
            if make_slice; then asked=true; elif [[ -z $(request_state)$(node_state) ]]; then return 1; fi
            ;;
          SUSPENDED | FAILED)
            if [[ $asked == true ]]; then return 1; fi  # it is ours and new: another would fail as well
            drop_slice "$request"
            continue
            ;;
        esac
        ;;
    esac
    sleep "$poll"
  done
}

install() {
  local archive code=0
  archive=$(mktemp --suffix=.tar.gz)
  # What git would commit, with what is not committed yet.
  git ls-files -z --cached --others --exclude-standard | tar -czf "$archive" --null --ignore-failed-read -T - || code=$?
  ((code)) || tpus tpu-vm scp "$archive" "$name:tvjax.tar.gz" --worker=all || code=$?
  rm -f "$archive"
  ((code)) || on_workers "mkdir -p tvjax && rm -rf tvjax/tvjax tvjax/configs && tar -xzf tvjax.tar.gz -C tvjax && \
bash tvjax/launch/tpu_worker.sh install" || code=$?
  return "$code"
}

# Runs the command on all workers and shows what worker 0 says. When one has ended badly the others end by themselves,
# since the processes watch each other; one that does not, hangs.
run() {
  local command follower final code=0 limit='' bad='^tvjax: this worker ended with code [^0]'
  printf -v command '%q ' bash tvjax/launch/tpu_worker.sh run "$@"
  rm -f "$logs"/[0-9].log "$logs"/[0-9][0-9].log "$logs"/[0-9][0-9][0-9].log
  : >"$logs/0.log"
  on_workers "$command" --output-directory="$logs" &
  running=$!
  tail -n +1 -s 0.2 -F --pid="$running" "$logs/0.log" 2>/dev/null &
  follower=$!
  while kill -0 "$running" 2>/dev/null; do
    sleep 0.5 &
    wait $! || true # a signal to this script ends a wait, not a sleep
    if [[ -z $limit ]] && grep -qs "$bad" "$logs"/*.log; then limit=$((SECONDS + ending)); fi
    if [[ -n $limit ]] && ((SECONDS > limit)); then
      say "a worker hangs, $ending s after another ended: killing it"
      on_workers 'bash tvjax/launch/tpu_worker.sh kill' || true
      limit=''
    fi
  done
  wait "$running" || code=$?
  # What is final for one worker is final for all: the others lost it, and may be named first.
  for final in 2 3; do
    if grep -qs "^tvjax: this worker ended with code $final " "$logs"/*.log; then code=$final; fi
  done
  wait "$follower" || true
  grep -Hs "$bad" "$logs"/*.log >&2 || true
  return "$code"
}

stopped=false running=
stop() {
  stopped=true
  if [[ -n $running ]]; then on_workers 'bash tvjax/launch/tpu_worker.sh stop' || true; else exit 143; fi
}
trap stop TERM INT

for ((attempt = 0; ; attempt++)); do
  if ! ready; then
    say "$name: there is no slice of $type in $zone; see above, or: gcloud compute tpus queued-resources describe $name --zone=$zone"
    exit 3
  fi
  code=0
  say "$name is ready: installing on every worker"
  install || code=$?
  if ((code == 0)); then
    say "starting on every worker; what each says is in $logs"
    run "$@" || code=$?
    running=
  fi
  if [[ $stopped == true ]] || ((code == 0 || code == 2 || code == 3)); then exit "$code"; fi
  if ((attempt >= restarts)); then
    say "ended with code $code after $restarts restarts: giving up; see $logs, then the same command goes on"
    exit "$code"
  fi
  say "ended with code $code: starting again (restart $((attempt + 1)) of $restarts)"
done
