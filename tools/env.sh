# Source this file to work in the environment that `make setup` built:  . tools/env.sh
VLAQ_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
export PATH="$VLAQ_ROOT/.venv/bin:$PATH"
export AMENT_PREFIX_PATH="$VLAQ_ROOT/.venv" CMAKE_PREFIX_PATH="$VLAQ_ROOT/.venv"
[ -f "$VLAQ_ROOT/install/local_setup.bash" ] && . "$VLAQ_ROOT/install/local_setup.bash"
export PYTHONPATH="$VLAQ_ROOT${PYTHONPATH:+:$PYTHONPATH}"
