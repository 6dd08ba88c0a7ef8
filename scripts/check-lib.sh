# shellcheck shell=bash
#
# What scripts/check runs tests with
#
# Results and their count, test programs under a hang guard, two at a time, and
# the lines in which they report. Knows no test and no part of scripts/check. To
# be sourced after lib.sh.
#
# Copyright (c) 2026 the virtio-blk data plane authors
#
# SPDX-License-Identifier: GPL-2.0-or-later

CHECK_LOGS=$LOGS/check
RESULTS=$CHECK_LOGS/results

#
# Results
#

# begin_results: forget those of the last run.
begin_results() {
    rm -rf -- "$CHECK_LOGS"
    mkdir -p "$CHECK_LOGS"
    : > "$RESULTS"
}

# results: takes lines "ok NAME", "not ok NAME: REASON" or "skip NAME: REASON"
# from standard input. One write for all, as two jobs may come here at once.
results() {
    local lines
    lines=$(cat)
    [ -n "$lines" ] || return 0
    printf '%s\n' "$lines" >> "$RESULTS"
    printf '%s\n' "$lines"
}

passed() {
    printf 'ok %s\n' "$1" | results
}

# failed NAME REASON...
failed() {
    printf 'not ok %s: %s\n' "$1" "${*:2}" | results
}

# skipped NAME REASON...
skipped() {
    printf 'skip %s: %s\n' "$1" "${*:2}" | results
}

# count WORD: how many results begin with it.
count() {
    grep -c "^$1 " "$RESULTS" || true
}

# summary: the last line of a run. Returns 1 if anything failed, or if nothing
# passed.
summary() {
    local ok bad skip
    ok=$(count ok) bad=$(count 'not ok') skip=$(count skip)
    if [ "$bad" -gt 0 ]; then
        printf '\nFailed:\n'
        grep '^not ok ' "$RESULTS"
        printf '\n'
    fi
    printf '%d passed, %d failed, %d skipped\n' "$ok" "$bad" "$skip"
    [ "$bad" -eq 0 ] && [ "$ok" -gt 0 ]
}

#
# Programs
#

# log_of NAME: the log of a program's run.
log_of() {
    printf '%s/%s.log\n' "$CHECK_LOGS" "${1//[^A-Za-z0-9_.-]/-}"
}

# guarded LIMIT LOG COMMAND...: run with all output in LOG; end it, and what it
# has started, if it hangs for LIMIT seconds or if this script ends. Returns
# the command's status, 124 or 137 if it had to be ended.
guarded() {
    local limit=$1 log=$2 status=0 begin=$SECONDS pid
    shift 2
    [ ! -e "$SCRATCH/ending" ] || exit 1
    timeout --kill-after=20 "$limit" "$@" > "$log" 2>&1 < /dev/null &
    pid=$!
    : > "$SCRATCH/pid.$pid"
    wait "$pid" || status=$?
    rm -f -- "$SCRATCH/pid.$pid"
    printf '%5d s %s\n' $((SECONDS - begin)) "${log##*/}" >> "$CHECK_LOGS/times"
    return "$status"
}

# end_programs: for the end of this script; only what guarded() has started.
end_programs() {
    local file
    : > "$SCRATCH/ending"
    for file in "$SCRATCH"/pid.*; do
        [ -e "$file" ] || continue
        kill -TERM "${file##*.}" 2>/dev/null || true
    done
    wait
}

# why STATUS LIMIT: in words, how a program ended.
why() {
    case $1 in
    124|137) printf 'hung, ended after %s s' "$2" ;;
    12[5-7]) printf 'could not be started' ;;
    129|1[3-9]?) printf 'died of signal %d' $(($1 - 128)) ;;
    *) printf 'exit status %d' "$1" ;;
    esac
}

# apart FUNCTION ARGUMENT...: in a shell of its own, whose variables and end
# are no matter of the caller. It reports by results().
apart() {
    "$@" &
    wait "$!" || failed "$*" "scripts/check itself failed, see above"
}

# background FUNCTION ARGUMENT...: the same, as soon as a CPU is free.
background() {
    while [ "$(jobs -rp | wc -l)" -ge "$JOBS" ]; do
        wait -n || true
    done
    { "$@"; : > "$SCRATCH/done.$BASHPID"; } &
    background_jobs+=("$!")
}

# finish_background: wait for all of them.
finish_background() {
    local pid
    wait
    for pid in "${background_jobs[@]}"; do
        [ -e "$SCRATCH/done.$pid" ] ||
            failed "job" "scripts/check itself failed, see above"
        rm -f -- "$SCRATCH/done.$pid"
    done
    background_jobs=()
}

background_jobs=()

#
# What they print
#

# verdicts NAME LOG: prints the results that a program's output holds: our own
# lines, those of QEMU's iotests, which differ when one cannot run, and those of
# the guest's report.
verdicts() {
    awk -v name="$1" '
        /^ok .* # SKIP/ {
            sub(/ # SKIP.*/, "")
            print "skip " name " " substr($0, 4) ": it says that it cannot run"
            next
        }
        /^ok / { print "ok " name " " substr($0, 4) }
        /^not ok / {
            print "not ok " name " " substr($0, 8) \
                (/: / ? "" : ": see its log")
        }
        /^skip / { print "skip " name " " substr($0, 6) }
        /^  ok    / { print "ok " name ": " substr($0, 9) }
        /^  FAIL  / {
            print "not ok " name ": " substr($0, 9) ": see the report"
        }' "$2"
}

# run_lines NAME LIMIT COMMAND...: a program that prints its verdicts. Its exit
# status is one more, under its own name.
run_lines() {
    local name=$1 limit=$2 log status=0 lines
    log=$(log_of "$name")
    shift 2
    guarded "$limit" "$log" "$@" || status=$?
    lines=$(verdicts "$name" "$log")
    results <<< "$lines"
    if [ "$status" -ne 0 ]; then
        failed "$name" \
            "$(why "$status" "$limit"): $(last_words "$log") (see $log)"
    elif [ -z "$lines" ]; then
        failed "$name" "no test ran, see $log"
    fi
}

# run_meson NAME BUILD TEST... [--OPTION=VALUE]...: tests of a build folder.
# Their time limits there are for a machine that does nothing else, and for
# code without sanitizers. An option that is given counts more than ours.
run_meson() {
    run_lines "$1" 7200 \
        "$ROOT/scripts/check-meson" "$2" --timeout-multiplier=3 "${@:3}"
}

# run_whole NAME LIMIT COMMAND...: a program whose exit status is the verdict.
run_whole() {
    local name=$1 limit=$2 log status=0
    log=$(log_of "$name")
    shift 2
    guarded "$limit" "$log" "$@" || status=$?
    if [ "$status" -eq 0 ]; then
        passed "$name"
    else
        failed "$name" \
            "$(why "$status" "$limit"): $(last_words "$log") (see $log)"
    fi
}

# last_words LOG: what an error message is likely to be.
last_words() {
    local line
    line=$(grep -v '^[-[:space:]]*$' "$1" | tail -n 1) || true
    printf '%s' "${line:-no output}"
}
