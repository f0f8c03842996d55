"""Quality and cost beside each other: the same prompts and seeds, with and without halfframe, and with fewer steps.

from halfframe.compare import Variant, compare, official_generate

generate = official_generate(pipe, size=(832, 480), frame_num=49, shift=12.0)
variants = [Variant("self-duplicate", {"strategy": "self-duplicate"})]
compare(generate, variants, prompts=["a red ball rolls over stripes"], steps=20, output="comparison")

Needs the extra ``halfframe[compare]``; `import halfframe` alone imports nothing of it.
"""

from halfframe.compare.budget import Budget
from halfframe.compare.files import compare_files
from halfframe.compare.generators import Generate, diffusers_generate, official_generate
from halfframe.compare.metrics import Video, latent_duplication_ratio, video_duplication_ratio
from halfframe.compare.quality import Quality, quality
from halfframe.compare.results import Comparison, ComparisonError, Results, Trial, Variant, fewer_steps
from halfframe.compare.runner import compare
from halfframe.compare.runs import Run
from halfframe.compare.session import Session
from halfframe.compare.summary import markdown
from halfframe.compare.videos import as_video, read_video, write_video

__all__ = [
    "Budget",
    "Comparison",
    "ComparisonError",
    "Generate",
    "Quality",
    "Results",
    "Run",
    "Session",
    "Trial",
    "Variant",
    "Video",
    "as_video",
    "compare",
    "compare_files",
    "diffusers_generate",
    "fewer_steps",
    "latent_duplication_ratio",
    "markdown",
    "official_generate",
    "quality",
    "read_video",
    "video_duplication_ratio",
    "write_video",
]
