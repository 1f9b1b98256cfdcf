"""What every long-running process needs: tasks, signals, logs."""
