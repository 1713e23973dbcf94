# CLIP page, example 1: a preconfigured model to files.
# The page's `oml.export2file` is a slip: a later edition has `pipeline.`, as here.
from oml.utils import ONNXPipeline

pipeline = ONNXPipeline("openai/clip-vit-base-patch32")
pipeline.export2file("clip")
