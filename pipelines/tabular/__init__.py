"""The tabular pipeline: rows of a CSV file through the whole of TFX, with an INT8 model of dense layers at its end."""
