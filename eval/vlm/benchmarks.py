"""The ten columns of Table 1 and the VLMEvalKit number each of them reports."""

from dataclasses import dataclass

from emkit.errors import UserError

JUDGE_MODEL = "gpt-4o-mini"  # the harness asks for gpt-4o-mini-2024-07-18, as the paper's evaluation does


@dataclass(frozen=True)
class Benchmark:
    """One column: how VLMEvalKit knows it, and how its class's numbers become the column's value.

    ``parts`` names the sub-categories whose unweighted mean is the value (MathVista, MATH-Vision);
    it is empty where the value is the plain mean over the items.
    """

    name: str
    dataset: str  # VLMEvalKit's dataset name; its TSV is <dataset>.tsv
    module: str  # module of vlmeval.dataset that holds the class
    cls: str
    split: str = ""  # rows of the TSV that belong to this column (RefCOCO's three share one file)
    parts: tuple[str, ...] = ()
    judged: bool = False

    @property
    def tsv(self) -> str:
        """File name of the dataset inside the data folder."""
        return f"{self.dataset}.tsv"


def _image_vqa(name: str, dataset: str, cls: str = "ImageVQADataset", **rest) -> Benchmark:
    return Benchmark(name, dataset, "image_vqa", cls, **rest)


def _refcoco(name: str) -> Benchmark:
    return Benchmark(name, "RefCOCO", "refcoco", "RefCOCODataset", split=f"{name}_val")


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        _image_vqa("VizWiz", "VizWiz", "VizWiz"),
        _image_vqa("GQA", "GQA_TestDev_Balanced"),
        _image_vqa(
            "MathVista",
            "MathVista_MINI",
            "MathVista",
            parts=("geometry reasoning", "algebraic reasoning", "geometry problem solving"),
            judged=True,
        ),
        _image_vqa(
            "MATH-Vision",
            "MathVision_MINI",
            "MathVision",
            parts=(
                "metric geometry - angle",
                "metric geometry - area",
                "metric geometry - length",
                "solid geometry",
            ),
            judged=True,
        ),
        _image_vqa("ChartQA", "ChartQA_TEST"),
        _image_vqa("TextVQA", "TextVQA_VAL"),
        _image_vqa("OCRVQA", "OCRVQA_TESTCORE"),
        _refcoco("RefCOCO"),
        _refcoco("RefCOCO+"),
        _refcoco("RefCOCOg"),
    )
}


def get(name: str) -> Benchmark:
    """The benchmark called ``name``; :class:`UserError` naming the known ones otherwise."""
    if name not in BENCHMARKS:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]
