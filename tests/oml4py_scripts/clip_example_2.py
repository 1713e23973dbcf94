# CLIP page, example 2: a preconfigured model to the database.
import oml
from oml.utils import ONNXPipeline

pipeline = ONNXPipeline("openai/clip-vit-base-patch32")
oml.connect("pyquser", "pyquser", dsn="pydsn")
pipeline.export2db("clip")
