# Overrides, dot access, settings, a function by name: as documented and as public scripts do it.
from oml.utils import MiningFunction, ONNXPipeline, ONNXPipelineConfig

assert ONNXPipelineConfig.show_templates()
names = ONNXPipelineConfig.show_preconfigured()
assert "openai/clip-vit-base-patch32" in names
[everything] = ONNXPipelineConfig.show_preconfigured(include_properties=True)
assert list(everything) == names
[one] = ONNXPipelineConfig.show_preconfigured(
    include_properties=True, model_name="openai/clip-vit-base-patch32"
)
assert one == {"openai/clip-vit-base-patch32": everything["openai/clip-vit-base-patch32"]}

config = ONNXPipelineConfig.from_template(
    "multimodal_clip", max_seq_length=64, distance_metrics=["COSINE", "DOT"], languages=["us"]
)
config.post_processors = [{"name": "Normalize"}]
assert (config.max_seq_length, config.do_lower_case, config.quantize_model) == (64, True, False)

pipeline = ONNXPipeline(
    model_name="openai/clip-vit-base-patch32",
    config=config,
    settings={
        "cache_dir": "downloads",
        "logging_level": "ERROR",
        "force_download": False,
        "ignore_checksum_error": True,
        "ignore_safetensors_error": True,
    },
    function=MiningFunction.EMBEDDING.name,
)
pipeline.export2file("with_properties", output_dir="pipelines")
