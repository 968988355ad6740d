# Source this in bash or zsh to work in the environment that `make setup` built:  . tools/env.sh
# Edited Python files are live: the source tree comes first on PYTHONPATH, `vlaq_ros.msg` from install/.

vlaq_root="$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"

case ":$PATH:" in
  *":$vlaq_root/.venv/bin:"*) ;;
  *) export PATH="$vlaq_root/.venv/bin:$PATH" ;;
esac

# The ROS wheels are a prefix of their own. Their launcher finds its libraries again when its guard
# variable is unset; a guard inherited from another environment would leave it without them.
if [ -d "$vlaq_root/.venv/share/rclpy" ]; then
  unset _ROS_WHEELS_BOOTSTRAP_COMPLETE
  export AMENT_PREFIX_PATH="$vlaq_root/.venv" CMAKE_PREFIX_PATH="$vlaq_root/.venv"
fi

if [ -f "$vlaq_root/install/local_setup.sh" ]; then
  COLCON_CURRENT_PREFIX="$vlaq_root/install" . "$vlaq_root/install/local_setup.sh"
  unset COLCON_CURRENT_PREFIX
else
  echo 'vlaq_ros is not built yet: run `make setup` first' >&2
fi
case ":${PYTHONPATH:-}:" in
  *":$vlaq_root:"*) ;;
  *) export PYTHONPATH="$vlaq_root${PYTHONPATH:+:$PYTHONPATH}" ;;
esac

# MuJoCo draws without a screen: OSMesa where it is installed, else EGL.
if [ -z "${MUJOCO_GL:-}" ]; then
  case "$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p 2>/dev/null)" in
    *libOSMesa.so*) export MUJOCO_GL=osmesa ;;
    *libEGL.so*) export MUJOCO_GL=egl ;;
  esac
fi

unset vlaq_root
