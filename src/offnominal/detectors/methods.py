"""The methods, one line each, listed without importing torch."""

from importlib.metadata import entry_points

from offnominal.detectors.method import Method
from offnominal.detectors.methods_supervised import SUPERVISED

__all__ = ["METHODS", "POINT_TEACHER", "REGAD", "TEACHER", "TRAINABLE_NAMES", "Method"]

ENTRY_POINTS = "offnominal.methods"
"""Group of entry points by which other packages add methods, each named like its method."""

TRAINABLE_NAMES = ("anomalyclip", "april-gan", "coop")
"""Those that `offnominal train` trains on a labelled data set, to be used on others."""
TEACHER = "efficientad-teacher"
POINT_TEACHER = "3d-st-teacher"
REGAD = "regad"
"""And what else it trains."""


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "anomalydino",
            "offnominal.detectors.memory_bank.anomalydino:AnomalyDINO",
            "1 or more good images",
            "nearest neighbours of DINOv2 patch features, mean of the top 1 %",
            "Damm et al., 2024, arXiv 2405.14529",
            grows="all",
            defects="optional",
        ),
        Method(
            "anomalydino-batched",
            "offnominal.detectors.batch.anomalydino_batched:BatchedAnomalyDINO",
            "nothing: a batch of mostly good images",
            "the images of a batch judge each other (predict --zero-shot-batch)",
            "Damm et al., 2024, appendix D",
            references="none",
            batched=True,
        ),
        Method(
            "subspacead",
            "offnominal.detectors.distribution.subspacead:SubspaceAD",
            "1 or more good images",
            "distance from a linear subspace of middle-layer patch features; no bank",
            "Lendering et al., 2026, arXiv 2602.23013",
            grows="adds",
            defects="optional",
        ),
        Method(
            "subspacead-batched",
            "offnominal.detectors.batch.subspacead_batched:BatchedSubspaceAD",
            "nothing: a batch of mostly good images",
            "the subspace of a batch judges its images (predict --zero-shot-batch)",
            "Lendering et al., 2026, batched zero-shot",
            references="none",
            batched=True,
        ),
        Method(
            "multilayer-nn",
            "offnominal.detectors.memory_bank.multilayer:MultiLayerNN",
            "1 or more good images",
            "nearest neighbours of several blocks' features, references and queries augmented",
            "after Wang et al. (VisionAD), 2025, arXiv 2504.11895",
            grows="all",
            defects="optional",
        ),
        Method(
            "patchcore",
            "offnominal.detectors.memory_bank.patchcore:PatchCore",
            "some to hundreds of good images",
            "coreset of locally aware mid-level features, nearest neighbours, re-weighted maximum",
            "Roth et al., 2022, arXiv 2106.08265",
            grows="all",
            defects="optional",
        ),
        Method(
            "rad",
            "offnominal.detectors.memory_bank.rad:RAD",
            "2 or more good images, of one kind of part or of several",
            "the nearest images by class token, then the nearest patches among theirs; multi-class",
            "Zhang et al., 2026, arXiv 2601.22763",
            grows="all",
            defects="optional",
        ),
        Method(
            "btf",
            "offnominal.detectors.memory_bank.btf:BTF",
            "some to hundreds of good scans",
            "PatchCore on colour features joined with FPFH of the points of scans",
            "Horwitz and Hoshen, 2023, arXiv 2203.05550",
            grows="all",
            defects="optional",
        ),
        Method(
            "softpatch",
            "offnominal.detectors.memory_bank.softpatch:SoftPatch",
            "dozens of images, some of them defective",
            "PatchCore without the patches that stand out in training, softly weighted",
            "Jiang et al., 2022, arXiv 2403.14233",
            defects="optional",
        ),
        Method(
            "ensemble",
            "offnominal.detectors.ensemble:Ensemble",
            "2 or more good images",
            "one method on several backbones, normalised scores and maps averaged",
            "Roth et al., 2022, section 4.2",
        ),
        Method(
            "fusion",
            "offnominal.detectors.late_fusion:LateFusion",
            "2 or more fitted models, and 3 or more good images",
            "fitted detectors of any methods as one, calibrated p-values and maps combined",
            "no paper of its own; Fisher, 1932, section 21.1; Vovk et al., 2005",
        ),
        Method(
            "spade",
            "offnominal.detectors.memory_bank.spade:SPADE",
            "1 or more good images",
            "nearest images, then correspondences of their feature pyramids",
            "Cohen and Hoshen, 2020, arXiv 2005.02357",
            defects="optional",
        ),
        Method(
            "padim",
            "offnominal.detectors.distribution.padim:PaDiM",
            "1 or more good images, parts in one place",
            "a Gaussian at each position, Mahalanobis distance",
            "Defard et al., 2021, arXiv 2011.08785",
            defects="optional",
        ),
        Method(
            "dn2",
            "offnominal.detectors.memory_bank.dn2:DN2",
            "1 or more good images",
            "nearest neighbours of one vector an image, the plain baseline",
            "Bergman et al., 2020, arXiv 2002.10445",
            defects="optional",
        ),
        Method(
            "gaussian",
            "offnominal.detectors.distribution.global_gaussian:GlobalGaussian",
            "4 or more good images",
            "a Gaussian of each level's mean features, Mahalanobis distances summed; no map",
            "Rippel et al., 2020, arXiv 2005.14140",
            defects="optional",
        ),
        Method(
            "musc",
            "offnominal.detectors.batch.musc:MuSc",
            "nothing: a batch of 5 or more mostly good images",
            "the images of a batch score each other, patch by patch (predict --zero-shot-batch)",
            "Li et al., 2024, arXiv 2401.16753",
            references="none",
            batched=True,
        ),
        Method(
            "stfpm",
            "offnominal.detectors.teacher_student.stfpm:STFPM",
            "50 or more good images, and a training",
            "a student that imitates a teacher's feature pyramid on good parts",
            "Wang et al., 2021, arXiv 2103.04257",
            defects="optional",
        ),
        Method(
            "deep-svdd",
            "offnominal.detectors.one_class.deep_svdd:DeepSVDD",
            "50 or more good images, and a training",
            "distance of an image's vector from the centre of a sphere, a plain baseline",
            "Ruff et al., 2018, ICML",
        ),
        Method(
            "patch-svdd",
            "offnominal.detectors.one_class.patch_svdd:PatchSVDD",
            "50 or more good images, and a training",
            "nearest neighbours of patches, embedded by what lies close together",
            "Yi and Yoon, 2020, arXiv 2006.16067",
        ),
        Method(
            "cutpaste",
            "offnominal.detectors.one_class.cutpaste:CutPaste",
            "50 or more good images, and a training",
            "a network that tells good images from pasted ones, a Gaussian of its embeddings",
            "Li et al., 2021, arXiv 2104.04015",
        ),
        Method(
            "loe",
            "offnominal.detectors.one_class.loe:LOE",
            "50 or more images, some of them defective, and a training",
            "learned transformations of patch features; suspected patches are learned as bad ones",
            "Qiu et al., 2022, arXiv 2202.08088",
            defects="optional",
        ),
        Method(
            "igd",
            "offnominal.detectors.one_class.igd:IGD",
            "50 or more good images, and a training",
            "a Gaussian of descriptors, and an adversarial decoder of what lies between them",
            "Chen et al., 2022, arXiv 2101.10043",
            defects="optional",
        ),
        Method(
            "fastflow",
            "offnominal.detectors.flow.fastflow:FastFlow",
            "50 or more good images, and a training",
            "normalising flows of a frozen network's feature maps",
            "Yu et al., 2021, arXiv 2111.07677",
            defects="optional",
        ),
        Method(
            "cflow",
            "offnominal.detectors.flow.cflow:CFlow",
            "50 or more good images, and a training",
            "normalising flows of feature vectors, given their place",
            "Gudovskiy et al., 2022, arXiv 2107.12571",
            defects="optional",
        ),
        Method(
            "differnet",
            "offnominal.detectors.flow.differnet:DifferNet",
            "20 or more good images, and a training",
            "a normalising flow of rotated copies' global features; no map",
            "Rudolph et al., 2021, arXiv 2008.12577",
            defects="optional",
        ),
        Method(
            "reverse-distillation",
            "offnominal.detectors.teacher_student.reverse_distillation:ReverseDistillation",
            "50 or more good images, and a training",
            "a decoder that paints a teacher's features anew from a narrow embedding",
            "Deng and Li, 2022, arXiv 2201.10703",
            defects="optional",
        ),
        Method(
            "efficientad",
            "offnominal.detectors.teacher_student.efficientad:EfficientAD",
            "50 or more good images, a training, and a teacher's file",
            "a student of a small teacher, and an autoencoder for what belongs where",
            "Batzner et al., 2024, arXiv 2303.14535",
            defects="optional",
        ),
        Method(
            "3d-st",
            "offnominal.detectors.teacher_student.points:PointStudent",
            "20 or more scans or clouds of good parts, and a training",
            "a student of a teacher that knows what lies around each point; colour is not seen",
            "Bergmann and Sattlegger, 2023, arXiv 2202.11660",
        ),
        Method(
            "dinomaly",
            "offnominal.detectors.reconstruction.dinomaly:Dinomaly",
            "50 or more good images, of one category or many, and a training",
            "a decoder that restores what DINOv2 sees of good parts; one model for many categories",
            "Guo et al., 2025, arXiv 2405.14325",
            defects="optional",
        ),
        Method(
            "simplenet",
            "offnominal.detectors.one_class.simplenet:SimpleNet",
            "50 or more good images, and a training",
            "locally aware features told from the same with noise",
            "Liu et al., 2023, arXiv 2303.15140",
            defects="optional",
        ),
        Method(
            "winclip",
            "offnominal.detectors.language.winclip:WinCLIP",
            "nothing, or good images (WinCLIP+); the part's name helps",
            "windows of CLIP compared with texts, and with good images where there are any",
            "Jeong et al., 2023, arXiv 2303.14814",
            references="optional",
        ),
        Method(
            "april-gan",
            "offnominal.detectors.language.april_gan:AprilGAN",
            "layers learned on another data set; then nothing, or good images",
            "patch tokens of four levels brought to the texts by learned layers",
            "Chen et al., 2023, arXiv 2305.17382",
            references="optional",
        ),
        Method(
            "anomalyclip",
            "offnominal.detectors.language.anomalyclip:AnomalyCLIP",
            "prompts learned on another data set; then nothing",
            "object-agnostic learned prompts, value-value attention",
            "Zhou et al., 2024, arXiv 2310.18961",
            references="none",
        ),
        Method(
            "coop",
            "offnominal.detectors.language.coop:CoOp",
            "prompts learned on another data set, and the part's name",
            "learned context around the part's name",
            "Zhou et al., 2022, arXiv 2109.01134",
            references="none",
        ),
        Method(
            "clip-ac",
            "offnominal.detectors.language.clip:CLIPAC",
            "nothing; the part's name helps",
            "CLIP with the normal and the anomalous name in 80 templates, a plain baseline",
            "Jeong et al., 2023, as AnomalyCLIP measured it",
            references="none",
        ),
        Method(
            "clip",
            "offnominal.detectors.language.clip:CLIPDetector",
            "nothing; the part's name helps",
            "CLIP with one normal and one anomalous prompt, the plainest baseline",
            "Radford et al., 2021, arXiv 2103.00020",
            references="none",
        ),
        Method(
            "maeday",
            "offnominal.detectors.reconstruction.maeday:MAEDAY",
            "nothing; weights of a masked autoencoder with its decoder",
            "what a masked autoencoder fails to paint from a quarter of the image",
            "Schwartz et al., 2022, arXiv 2211.14307",
            references="none",
        ),
        Method(
            "autoencoder",
            "offnominal.detectors.reconstruction.autoencoder:Autoencoder",
            "50 or more good images, and a training",
            "an autoencoder with a narrow bottleneck, compared by SSIM or pixel by pixel",
            "Bergmann et al., 2019, arXiv 1807.02011",
        ),
        Method(
            "riad",
            "offnominal.detectors.reconstruction.riad:RIAD",
            "50 or more good images, and a training",
            "hidden squares of several sizes are painted in and compared by their gradients",
            "Zavrtanik et al., 2021, Pattern Recognition 112",
        ),
        Method(
            "draem",
            "offnominal.detectors.reconstruction.draem:DRAEM",
            "50 or more good images, and a training",
            "synthetic defects are painted over by one network and marked by another",
            "Zavrtanik et al., 2021, arXiv 2108.07610",
        ),
        Method(
            "cfm",
            "offnominal.detectors.reconstruction.crossmodal:CFM",
            "20 or more scans with colour of good parts, and a training",
            "networks that foresee geometry from colour and back; both wrong is anomalous",
            "Costanzino et al., 2024, arXiv 2312.04521",
        ),
        Method(
            "trustmae",
            "offnominal.detectors.reconstruction.trustmae:TrustMAE",
            "dozens of images, some of them defective, and a training",
            "paints from a memory of prototypes that what is far off does not move",
            "Tan et al., 2021, arXiv 2012.14629",
            defects="optional",
        ),
        Method(
            "chat",
            "offnominal.detectors.chat:ChatModel",
            "0 to 16 good images, and an OpenAI-compatible endpoint",
            "a multimodal chat model is asked, and answers with a verdict, boxes and words",
            "no paper of its own; Jiang et al. (MMAD), 2024, arXiv 2410.09453, measure such models",
            references="optional",
        ),
        *SUPERVISED,
    )
}


def add_methods_of_others() -> None:
    """List the methods that installed packages add; done once, on import."""
    for point in entry_points(group=ENTRY_POINTS):
        if point.name not in METHODS:
            from_where = point.dist.name if point.dist else "another package"
            METHODS[point.name] = Method(
                point.name, point.value, "see its documentation", f"from {from_where}", ""
            )


add_methods_of_others()
