"""Where the methods come from, as BibTeX."""

__all__ = ["CITATIONS"]

CITATIONS = {
    "metaalign": """\
@inproceedings{wei2021metaalign,
  title     = {{MetaAlign}: Coordinating Domain Alignment and Classification for Unsupervised Domain Adaptation},
  author    = {Wei, Guoqiang and Lan, Cuiling and Zeng, Wenjun and Chen, Zhibo},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}""",
    "dann": """\
@article{ganin2016domain,
  title   = {Domain-Adversarial Training of Neural Networks},
  author  = {Ganin, Yaroslav and Ustinova, Evgeniya and Ajakan, Hana and Germain, Pascal and Larochelle, Hugo and
             Laviolette, Fran{\\c{c}}ois and Marchand, Mario and Lempitsky, Victor},
  journal = {Journal of Machine Learning Research},
  volume  = {17},
  year    = {2016}
}""",
    "cdan": """\
@inproceedings{long2018conditional,
  title     = {Conditional Adversarial Domain Adaptation},
  author    = {Long, Mingsheng and Cao, Zhangjie and Wang, Jianmin and Jordan, Michael I.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2018}
}""",
    "gvb": """\
@inproceedings{cui2020gradually,
  title     = {Gradually Vanishing Bridge for Adversarial Domain Adaptation},
  author    = {Cui, Shuhao and Wang, Shuhui and Zhuo, Junbao and Su, Chi and Huang, Qingming and Tian, Qi},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020}
}""",
}
