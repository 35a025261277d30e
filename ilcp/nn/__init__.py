"""The tools of computing beside the models: devices, several processes, whitening."""
