# CLIP page, example 3: a model that is not preconfigured, with a template, to files.
from oml.utils import ONNXPipeline, ONNXPipelineConfig

config = ONNXPipelineConfig.from_template("multimodal_clip")
pipeline = ONNXPipeline("openai/clip-vit-large-patch14", config=config)
pipeline.export2file("clip_14")
