"""INT8 quantisation of frozen TensorFlow graphs on the oneDNN kernels of stock TensorFlow."""
