"""Datasets: small embedded ones, the two CIFARs, sets with real-world label noise, and folders of the user."""

from __future__ import annotations

from lnlbench.api import DatasetEntry, Paper

_CIFAR = Paper(
    title="Learning Multiple Layers of Features from Tiny Images",
    authors="Krizhevsky",
    venue="Technical report, University of Toronto",
    year=2009,
    url="https://www.cs.toronto.edu/~kriz/learning-features-2009-TR.pdf",
    bibtex="""@techreport{krizhevsky2009learning,
  title       = {Learning Multiple Layers of Features from Tiny Images},
  author      = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year        = {2009}
}""",
)

ENTRIES: tuple[DatasetEntry, ...] = (
    DatasetEntry(
        name="digits",
        target="lnlbench.builtin.datasets.digits:Digits",
        summary="1,797 grey 8x8 images of handwritten digits in 10 classes; ships inside scikit-learn.",
        paper=Paper(
            title="Optical Recognition of Handwritten Digits",
            authors="Alpaydin, Kaynak",
            venue="UCI Machine Learning Repository",
            year=1998,
            url="https://doi.org/10.24432/C50P49",
            bibtex="""@misc{alpaydin1998optical,
  title        = {Optical Recognition of Handwritten Digits},
  author       = {Alpaydin, Ethem and Kaynak, Cenk},
  howpublished = {UCI Machine Learning Repository},
  year         = {1998},
  doi          = {10.24432/C50P49}
}""",
        ),
    ),
    DatasetEntry(
        name="fashion",
        target="lnlbench.builtin.datasets.fashion:Fashion",
        summary="Fashion-MNIST: 60,000 + 10,000 grey 28x28 images of clothes in 10 classes.",
        paper=Paper(
            title="Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms",
            authors="Xiao, Rasul, Vollgraf",
            venue="arXiv",
            year=2017,
            url="https://arxiv.org/abs/1708.07747",
            bibtex="""@article{xiao2017fashion,
  title   = {{Fashion-MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  author  = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  journal = {arXiv preprint arXiv:1708.07747},
  year    = {2017}
}""",
        ),
    ),
    DatasetEntry(
        name="cifar10",
        target="lnlbench.builtin.datasets.cifar:Cifar10",
        summary="CIFAR-10: 50,000 + 10,000 colour 32x32 images in 10 classes.",
        paper=_CIFAR,
    ),
    DatasetEntry(
        name="cifar100",
        target="lnlbench.builtin.datasets.cifar:Cifar100",
        summary="CIFAR-100: 50,000 + 10,000 colour 32x32 images in 100 classes.",
        paper=_CIFAR,
    ),
    DatasetEntry(
        name="animal10n",
        target="lnlbench.builtin.datasets.animal10n:Animal10N",
        summary="Animal-10N: 50,000 + 5,000 colour 64x64 images of ten animals people mix up; about 8 % wrong labels.",
        paper=Paper(
            title="SELFIE: Refurbishing Unclean Samples for Robust Deep Learning",
            authors="Song, Kim, Lee",
            venue="ICML",
            year=2019,
            url="https://proceedings.mlr.press/v97/song19b.html",
            bibtex="""@inproceedings{song2019selfie,
  title     = {{SELFIE}: Refurbishing Unclean Samples for Robust Deep Learning},
  author    = {Song, Hwanjun and Kim, Minseok and Lee, Jae-Gil},
  booktitle = {International Conference on Machine Learning},
  year      = {2019}
}""",
        ),
    ),
    DatasetEntry(
        name="red-mini-imagenet",
        target="lnlbench.builtin.datasets.red_mini_imagenet:RedMiniImageNet",
        summary="Red Mini-ImageNet: about 50,000 + 5,000 images in 100 classes, 0-80 % of them wrong ones.",
        paper=Paper(
            title="Beyond Synthetic Noise: Deep Learning on Controlled Noisy Labels",
            authors="Jiang, Huang, Liu, Yang",
            venue="ICML",
            year=2020,
            url="https://proceedings.mlr.press/v119/jiang20c.html",
            bibtex="""@inproceedings{jiang2020beyond,
  title     = {Beyond Synthetic Noise: Deep Learning on Controlled Noisy Labels},
  author    = {Jiang, Lu and Huang, Di and Liu, Mason and Yang, Weilong},
  booktitle = {International Conference on Machine Learning},
  year      = {2020}
}""",
        ),
    ),
    DatasetEntry(
        name="mini-webvision",
        target="lnlbench.builtin.datasets.webvision:MiniWebVision",
        summary="mini-WebVision: about 66,000 web images of the first 50 classes; tested on WebVision and on ILSVRC12.",
        paper=Paper(
            title="WebVision Database: Visual Learning and Understanding from Web Data",
            authors="Li, Wang, Li, Agustsson, Van Gool",
            venue="arXiv",
            year=2017,
            url="https://arxiv.org/abs/1708.02862",
            bibtex="""@article{li2017webvision,
  title   = {{WebVision} Database: Visual Learning and Understanding from Web Data},
  author  = {Li, Wen and Wang, Limin and Li, Wei and Agustsson, Eirikur and Van Gool, Luc},
  journal = {arXiv preprint arXiv:1708.02862},
  year    = {2017}
}""",
        ),
    ),
    DatasetEntry(
        name="clothing1m",
        target="lnlbench.builtin.datasets.clothing1m:Clothing1M",
        summary="Clothing1M: a million shop images of 14 kinds of clothes, 38 % wrong labels.",
        paper=Paper(
            title="Learning from Massive Noisy Labeled Data for Image Classification",
            authors="Xiao, Xia, Yang, Huang, Wang",
            venue="CVPR",
            year=2015,
            url="https://openaccess.thecvf.com/content_cvpr_2015/html/Xiao_Learning_From_Massive_2015_CVPR_paper.html",
            bibtex="""@inproceedings{xiao2015learning,
  title     = {Learning from Massive Noisy Labeled Data for Image Classification},
  author    = {Xiao, Tong and Xia, Tian and Yang, Yi and Huang, Chang and Wang, Xiaogang},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2015}
}""",
        ),
    ),
    DatasetEntry(
        name="food101n",
        target="lnlbench.builtin.datasets.food101n:Food101N",
        summary="Food-101N: 310,009 web images of 101 dishes, about 20 % wrong labels; tested on Food-101.",
        paper=Paper(
            title="CleanNet: Transfer Learning for Scalable Image Classifier Training with Label Noise",
            authors="Lee, He, Zhang, Yang",
            venue="CVPR",
            year=2018,
            url="https://arxiv.org/abs/1711.07131",
            bibtex="""@inproceedings{lee2018cleannet,
  title     = {{CleanNet}: Transfer Learning for Scalable Image Classifier Training with Label Noise},
  author    = {Lee, Kuang-Huei and He, Xiaodong and Zhang, Lei and Yang, Linjun},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2018}
}""",
        ),
    ),
    DatasetEntry(
        name="folder:",
        target="lnlbench.builtin.datasets.folder:ImageFolder",
        summary="Your own images: folder:PATH with train/<class>/* and test/<class>/*; labels.csv if labels are noisy.",
    ),
)
