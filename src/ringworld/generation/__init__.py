"""From a trained model to text: sampling, the compiled decoding loop, and `Model`, the object that people hold."""
