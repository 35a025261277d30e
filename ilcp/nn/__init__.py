"""What computing needs beside the models: devices, several processes, whitening."""
