"""What recorded runs and tables of evaluations say; reads results, runs policies, no ROS."""
