"""What a training step shows: values of tasks and layers, written down and given to the detector."""
