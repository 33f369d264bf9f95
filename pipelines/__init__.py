"""TFX pipelines that quantise: ``digits`` (train and push), ``frozen_graph`` (.pb and TFRecords), ``tabular`` (CSV)."""
