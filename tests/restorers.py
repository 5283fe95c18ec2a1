"""The restorers that this repository installs, stated apart from the registry."""

OURS = [
    "diffbir",
    "diffbir-bsrnet",
    "diffbir-scunet",
    "diffbir-swinir",
    "osediff",
    "osediff-face",
    "realesr-animevideov3",
    "realesrgan-x4plus",
    "realesrgan-x4plus-anime",
    "s3diff",
    "seesr",
    "seesr-turbo",
    "spandrel",
    "supir",
]
