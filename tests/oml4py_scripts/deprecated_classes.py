# The classes of 23.6 and before, with both spellings of the keyword.
from oml.utils import EmbeddingModel, EmbeddingModelConfig

EmbeddingModelConfig.show_preconfigured()
EmbeddingModelConfig.show_templates()
config = EmbeddingModelConfig.from_template("multimodal_clip", max_seq_length=77)
em = EmbeddingModel(model_name="openai/clip-vit-base-patch32", configuration=config)
em = EmbeddingModel(model_name="openai/clip-vit-base-patch32", config=config)
em.export2file("your_template_file_name", output_dir=".")
