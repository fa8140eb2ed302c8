# shellcheck shell=bash
# Sourced by a script after its options: sets them from the command line.
#
#   ## Data                          a heading in the help
#   nj=2          # number of jobs   name, default and help text
#   trim=true     # cut silence      a default of true or false makes it a boolean
#   . utils/parse_options.sh
#
# The options are the assignments above this line, at the beginning of theirs. `--foo-bar v` and
# `--foo_bar v` set foo_bar. `--config FILE` reads lines NAME=VALUE first; the command line wins.
# `--help` prints the options as the script states them, below the comment at its top. An unknown
# name, a boolean that is neither true nor false, or a word that is no option is an error, and all of
# them are reported at once. The call is kept in `command_line`.

# shellcheck disable=SC2034  # for the script
command_line="$0 $*"
_script=${BASH_SOURCE[1]:-$0}

_option_block() {
    sed -n '/^\(\.\|source\) .*parse_options\.sh/q;p' "$_script"
}

_option_names=$(_option_block | sed -n 's/^\([A-Za-z_][A-Za-z0-9_]*\)=.*/\1/p')
_option_problems=()

_print_help() {
    local line name
    echo "Usage: $0 [--option value ...]"
    sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$_script" | grep -v '^shellcheck'
    while IFS= read -r line; do
        if [[ $line =~ ^##\ (.*) ]]; then
            printf '\n%s\n' "${BASH_REMATCH[1]}:"
        elif [[ $line =~ ^([A-Za-z_][A-Za-z0-9_]*)= ]]; then
            name=${BASH_REMATCH[1]}
            line=$([[ $line =~ [[:space:]]#\ (.*)$ ]] && echo "${BASH_REMATCH[1]}" || true)
            printf '  --%-22s %s\n' "$name" "$line${!name:+ (default: ${!name})}"
        fi
    done < <(_option_block)
    printf '\nGeneral:\n'
    printf '  --%-22s %s\n' config "file of lines NAME=VALUE with options" help "this text"
}

# _set_option NAME VALUE WHERE
_set_option() {
    local name=${1//-/_} value=$2
    if ! grep -qx -- "$name" <<<"$_option_names"; then
        _option_problems+=("$3$name is unknown")
    elif [[ ${!name} =~ ^(true|false)$ && ! $value =~ ^(true|false)$ ]]; then
        _option_problems+=("$3$name is true or false, not '$value'")
    else
        printf -v "$name" %s "$value"
    fi
}

# _read_config FILE: every line of it is an option.
_read_config() {
    local line name value
    if [ ! -r "$1" ]; then
        _option_problems+=("--config $1 cannot be read")
        return
    fi
    while IFS= read -r line || [ -n "$line" ]; do
        [[ $line =~ ^[[:space:]]*(#|$) ]] && continue
        if [[ $line =~ ^([A-Za-z_][A-Za-z0-9_-]*)=(.*)$ ]]; then
            name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
            [[ $value =~ ^\"(.*)\"$ || $value =~ ^\'(.*)\'$ ]] && value=${BASH_REMATCH[1]}
            _set_option "$name" "$value" "$1: "
        else
            _option_problems+=("$1: '$line' is not NAME=VALUE")
        fi
    done <"$1"
}

_option_words=() # names and values in turn
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h)
            _print_help
            exit 0
            ;;
        --*=*) _option_problems+=("'$1' is written with a space: --name value") ;;
        --?*)
            if [ $# -lt 2 ]; then
                _option_problems+=("$1 needs a value")
            elif [ "$1" = --config ]; then
                _read_config "$2"
                shift
            else
                _option_words+=("${1#--}" "$2")
                shift
            fi
            ;;
        *) _option_problems+=("'$1' is no option") ;;
    esac
    shift
done
for ((_i = 0; _i < ${#_option_words[@]}; _i += 2)); do
    _set_option "${_option_words[_i]}" "${_option_words[_i + 1]}" --
done
if [ ${#_option_problems[@]} -gt 0 ]; then
    printf '%s\n' "${_option_problems[@]/#/$0: error: }" >&2
    echo "legal options: --${_option_names//$'\n'/ --} --config --help" >&2
    exit 2
fi
