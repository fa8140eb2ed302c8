# shellcheck shell=bash
# Sourced by path.sh last: settings of this recipe alone. The mini corpus needs none.
