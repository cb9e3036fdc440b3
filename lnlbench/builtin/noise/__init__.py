"""The noise of the literature, synthetic and as released label files, announced without importing NumPy."""

from __future__ import annotations

from lnlbench.api import NoiseEntry, Paper

_PATRINI = Paper(
    title="Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach",
    authors="Patrini, Rozza, Menon, Nock, Qu",
    venue="CVPR",
    year=2017,
    url="https://arxiv.org/abs/1609.03683",
    bibtex="""@inproceedings{patrini2017making,
  title     = {Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach},
  author    = {Patrini, Giorgio and Rozza, Alessandro and Menon, Aditya Krishna and Nock, Richard and Qu, Lizhen},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year      = {2017}
}""",
)

_HAN = Paper(
    title="Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels",
    authors="Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama",
    venue="NeurIPS",
    year=2018,
    url="https://arxiv.org/abs/1804.06872",
    bibtex="""@inproceedings{han2018coteaching,
  title     = {Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels},
  author    = {Han, Bo and Yao, Quanming and Yu, Xingrui and Niu, Gang and Xu, Miao and Hu, Weihua and
               Tsang, Ivor W. and Sugiyama, Masashi},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}""",
)

_XIA = Paper(
    title="Part-dependent Label Noise: Towards Instance-dependent Label Noise",
    authors="Xia, Liu, Han, Wang, Gong, Liu, Niu, Tao, Sugiyama",
    venue="NeurIPS",
    year=2020,
    url="https://arxiv.org/abs/2006.07836",
    bibtex="""@inproceedings{xia2020part,
  title     = {Part-dependent Label Noise: Towards Instance-dependent Label Noise},
  author    = {Xia, Xiaobo and Liu, Tongliang and Han, Bo and Wang, Nannan and Gong, Mingming and Liu, Haifeng and
               Niu, Gang and Tao, Dacheng and Sugiyama, Masashi},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2020}
}""",
)

_YAO = Paper(
    title="Jo-SRC: A Contrastive Approach for Combating Noisy Labels",
    authors="Yao, Sun, Zhang, Shen, Wu, Zhang, Tang",
    venue="CVPR",
    year=2021,
    url="https://arxiv.org/abs/2103.13029",
    bibtex="""@inproceedings{yao2021josrc,
  title     = {{Jo-SRC}: A Contrastive Approach for Combating Noisy Labels},
  author    = {Yao, Yazhou and Sun, Zeren and Zhang, Chuanyi and Shen, Fumin and Wu, Qi and Zhang, Jian and
               Tang, Zhenmin},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}""",
)

_WEI = Paper(
    title="Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations",
    authors="Wei, Zhu, Cheng, Liu, Niu, Liu",
    venue="ICLR",
    year=2022,
    url="https://arxiv.org/abs/2110.12088",
    bibtex="""@inproceedings{wei2022learning,
  title     = {Learning with Noisy Labels Revisited: A Study Using Real-World Human Annotations},
  author    = {Wei, Jiaheng and Zhu, Zhaowei and Cheng, Hao and Liu, Tongliang and Niu, Gang and Liu, Yang},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
)

_CHEN = Paper(
    title="Beyond Class-Conditional Assumption: A Primary Attempt to Combat Instance-Dependent Label Noise",
    authors="Chen, Ye, Chen, Zhao, Heng",
    venue="AAAI",
    year=2021,
    url="https://arxiv.org/abs/2012.05458",
    bibtex="""@inproceedings{chen2021beyond,
  title     = {Beyond Class-Conditional Assumption: A Primary Attempt to Combat Instance-Dependent Label Noise},
  author    = {Chen, Pengfei and Ye, Junjie and Chen, Guangyong and Zhao, Jingwei and Heng, Pheng-Ann},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2021}
}""",
)

ENTRIES: tuple[NoiseEntry, ...] = (
    NoiseEntry(
        name="symmetric",
        target="lnlbench.builtin.noise.symmetric:symmetric",
        summary="Touched labels are redrawn uniformly, from all classes (inclusive) or the wrong ones (exclusive).",
        options={"count": ("exact", "exact-per-class", "bernoulli"), "replacement": ("exclusive", "inclusive")},
        paper=_HAN,
    ),
    NoiseEntry(
        name="asymmetric",
        target="lnlbench.builtin.noise.asymmetric:asymmetric",
        summary="Touched labels move to the one class that theirs is confused with, by a named map.",
        options={
            "count": ("exact", "exact-per-class", "bernoulli"),
            "map": ("cifar10", "mnist", "superclass", "block5", "next"),
        },
        paper=_PATRINI,
    ),
    NoiseEntry(
        name="pair",
        target="lnlbench.builtin.noise.pair:pair",
        summary="Touched labels move to the next class id, the last one to the first.",
        options={"count": ("bernoulli", "exact", "exact-per-class")},
        paper=_HAN,
    ),
    NoiseEntry(
        name="part-dependent",
        target="lnlbench.builtin.noise.part_dependent:part_dependent",
        summary="Every image has a flip rate of its own; random projections of its pixels say to which class it flips.",
        uses_images=True,
        options={"features": ("raw", "normalised"), "projection": ("per-class", "shared")},
        paper=_XIA,
    ),
    NoiseEntry(
        name="open-set",
        target="lnlbench.builtin.noise.open_set:open_set",
        summary="Images of classes outside the task get labels of known classes; labels of known classes flip.",
        options={
            "flip": ("symmetric", "pair"),
            "count": ("bernoulli", "exact", "exact-per-class"),
            "stream": ("lnlbench", "released"),
        },
        paper=_YAO,
    ),
    NoiseEntry(
        name="cifar-n",
        target="lnlbench.builtin.noise.cifar_n:CifarN",
        kind="released",
        summary="Labels that people gave to the training images of CIFAR-10 and CIFAR-100.",
        options={
            "labels": (
                "aggre_label",
                "random_label1",
                "random_label2",
                "random_label3",
                "worse_label",
                "noisy_label",
            )
        },
        paper=_WEI,
    ),
    NoiseEntry(
        name="seal",
        target="lnlbench.builtin.noise.seal:Seal",
        kind="released",
        summary="The CIFAR-10 training images that a network is least sure of have the class it confuses them with.",
        options={"level": ("0.1", "0.2", "0.3", "0.4")},
        paper=_CHEN,
    ),
    NoiseEntry(
        name="own",
        target="",
        kind="own",
        summary="The labels that the dataset comes with, as they are.",
    ),
)
