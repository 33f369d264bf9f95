"""Serves a pushed SavedModel by MLServer: serialized ``tf.Example``s in, the model's outputs back.

MLServer finds it by the name in ``model-settings.json``; nothing of the product is needed where it runs.
"""

from __future__ import annotations

import base64
import os

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.errors import InferenceError, InvalidModelURI
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput

# INT8 kernels are oneDNN's. TensorFlow reads this when it is imported, and leaves them off on processors without VNNI.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import tensorflow as tf


class SavedModelRuntime(MLModel):
    """The SavedModel at ``parameters.uri`` or ``MLSERVER_MODEL_URI``, asked by its ``serving_default`` signature."""

    async def load(self) -> bool:
        uri = self.settings.parameters.uri if self.settings.parameters else None
        if not uri or not tf.saved_model.contains_saved_model(uri):
            raise InvalidModelURI(self.name, uri)
        # Kept, because the signature alone does not keep the model's variables and tables.
        self._model = tf.saved_model.load(uri)
        self._signature = self._model.signatures["serving_default"]
        (self._argument,) = self._signature.structured_input_signature[1]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Answers one request, whose one input is a BYTES vector of serialized examples, each in base64.

        Raises:
          InferenceError: the request holds something else. MLServer answers with status 400 and the reason.
        """
        names = [given.name for given in payload.inputs]
        if names != [self._argument]:
            raise InferenceError(f"the model takes one input, {self._argument}; the request has {names}")
        examples = tf.constant(_decode(payload.inputs[0]), tf.string)
        try:
            results = self._signature(**{self._argument: examples})
        except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
            raise InferenceError(f"the model cannot read the examples: {error.message}") from error
        outputs = [NumpyCodec.encode_output(name, results[name].numpy()) for name in sorted(results)]
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=outputs)


def _decode(given: RequestInput) -> list[bytes]:
    """Returns the examples of an input. MLServer's own codec would take text that is no base64 for an example."""
    elements = given.data.root
    if not isinstance(elements, list):
        raise InferenceError(f"{given.name} holds {type(elements).__name__}, not a list of examples")
    if given.shape[1:] == [1] and all(isinstance(element, list) and len(element) == 1 for element in elements):
        elements = [element for (element,) in elements]  # data may be nested as the shape is
    content_type = given.parameters.content_type if given.parameters else None
    if (given.datatype, content_type) != ("BYTES", "base64"):
        raise InferenceError(
            f"{given.name} is {given.datatype} with content_type {content_type}; send BYTES with content_type base64"
        )
    if given.shape not in ([len(elements)], [len(elements), 1]):
        raise InferenceError(f"{given.name} has {len(elements)} examples, but the shape {given.shape}")
    try:
        return [base64.b64decode(element, validate=True) for element in elements]
    except (TypeError, ValueError) as error:
        raise InferenceError(f"{given.name} is not in base64: {error}") from error
