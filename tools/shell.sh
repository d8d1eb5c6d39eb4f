# What the scripts in tools/ have in common. Sourced by bash; needs nothing but bash and coreutils.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# retry WHAT COMMAND...: runs the command up to 5 times, waiting longer each time, because mirrors hiccup. COMMAND may be a function.
retry() {
    local what=$1 attempt
    shift
    for attempt in 1 2 3 4 5; do
        "$@" && return 0
        [ "$attempt" = 5 ] && break
        say "$what failed (attempt $attempt of 5); trying again in $((attempt * attempt * 2)) s"
        sleep "$((attempt * attempt * 2))"
    done
    return 1
}
