"""The methods that learn from defective images as well, or from other parts, one line each."""

from offnominal.detectors.method import Method

__all__ = ["SUPERVISED"]

SUPERVISED = (
    Method(
        "regad",
        "offnominal.detectors.meta.regad:RegAD",
        "stages trained on other categories; then 2 to 8 good images",
        "registered features of turned and shifted copies, a Gaussian at each position",
        "Huang et al., 2022, arXiv 2207.07361",
        defects="optional",
    ),
    Method(
        "supersimplenet",
        "offnominal.detectors.supervised.supersimplenet:SuperSimpleNet",
        "50 or more good images, defective ones where there are any, and a training",
        "a map and a score learned from noise on features, and from labelled defects",
        "Rolih et al., 2024, arXiv 2408.03143",
        defects="optional",
    ),
    Method(
        "devnet",
        "offnominal.detectors.supervised.devnet:DevNet",
        "50 or more good images, some defective ones, and a training",
        "a network whose scores of defective images deviate from those of good ones",
        "Pang et al., 2021, arXiv 2108.00462",
        defects="required",
    ),
    Method(
        "dra",
        "offnominal.detectors.supervised.dra:DRA",
        "50 or more good images, some defective ones, and a training",
        "heads for seen, synthetic and residual anomalies, each apart",
        "Ding et al., 2022, arXiv 2203.14506",
        defects="required",
    ),
    Method(
        "mixed-supervision",
        "offnominal.detectors.supervised.mixed:MixedSupervision",
        "good images, dozens of defective ones, few of them with masks, and a training",
        "marks defects first and decides about the image then, with what is known of each",
        "Božič et al., 2021, arXiv 2104.06064",
        defects="required",
    ),
    Method(
        "dynamics",
        "offnominal.detectors.supervised.dynamics:TrainingDynamics",
        "50 or more good images, some defective ones, and a training",
        "tells patches by how their loss falls while an autoencoder learns",
        "after Chu and Kitani, 2020, ECCV",
        defects="required",
    ),
    Method(
        "cavga",
        "offnominal.detectors.supervised.cavga:CAVGA",
        "50 or more good images, some defective ones, and a training",
        "a variational autoencoder whose attention is to cover good parts and shun defects",
        "Venkataramanan et al., 2020, arXiv 1911.08616",
        defects="required",
    ),
    Method(
        "segmentation",
        "offnominal.detectors.supervised.segmentation:Segmentation",
        "good images, and dozens of defective ones with masks; a training",
        "a U-Net, or another decoder, on any encoder, that marks defects and names their class",
        "Ronneberger et al., 2015, arXiv 1505.04597; segmentation_models_pytorch",
        defects="required",
    ),
    Method(
        "boxes",
        "offnominal.detectors.supervised.boxes:Boxes",
        "good images, and dozens of defective ones with boxes; a training",
        "RetinaNet, Faster R-CNN, FCOS or SSDLite: boxes around defects, each with its class",
        "Lin et al., 2017, arXiv 1708.02002, and others; torchvision",
        defects="required",
    ),
    Method(
        "saliency",
        "offnominal.detectors.supervised.saliency:Saliency",
        "good images, and dozens of defective ones with masks; a training",
        "a U-Net that marks whatever is defective, with a loss that weighs edges",
        "Wei et al., 2020, arXiv 1911.11445; Qin et al., 2020, arXiv 2005.09007",
        defects="required",
    ),
    Method(
        "classes",
        "offnominal.detectors.supervised.classes:Classes",
        "good images, and dozens of defective ones of known classes; a training",
        "a classifier: defective or not, and of which classes; no masks needed",
        "timm; maps as Zhou et al., 2016, arXiv 1512.04150",
        defects="required",
    ),
)
