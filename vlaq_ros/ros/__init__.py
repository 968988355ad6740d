"""The ROS 2 side: parameters, lifecycle, conversions, QoS, nodes. Only this part imports rclpy."""
