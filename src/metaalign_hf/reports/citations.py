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
    "optimism": """\
@inproceedings{daskalakis2018training,
  title     = {Training {GANs} with Optimism},
  author    = {Daskalakis, Constantinos and Ilyas, Andrew and Syrgkanis, Vasilis and Zeng, Haoyang},
  booktitle = {International Conference on Learning Representations},
  year      = {2018}
}""",
    "game": """\
@inproceedings{acuna2022domain,
  title     = {Domain Adversarial Training: A Game Perspective},
  author    = {Acuna, David and Law, Marc T. and Zhang, Guojun and Fidler, Sanja},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
    "pga": """\
@inproceedings{phan2024enhancing,
  title     = {Enhancing Domain Adaptation through Prompt Gradient Alignment},
  author    = {Phan, Hoang and Tran, Lam and Tran, Quyen and Le, Trung},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
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
    "coral": """\
@inproceedings{sun2016deep,
  title     = {Deep {CORAL}: Correlation Alignment for Deep Domain Adaptation},
  author    = {Sun, Baochen and Saenko, Kate},
  booktitle = {European Conference on Computer Vision Workshops},
  year      = {2016}
}""",
    "jmmd": """\
@inproceedings{long2017deep,
  title     = {Deep Transfer Learning with Joint Adaptation Networks},
  author    = {Long, Mingsheng and Zhu, Han and Wang, Jianmin and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year      = {2017}
}""",
    "mcc": """\
@inproceedings{jin2020minimum,
  title     = {Minimum Class Confusion for Versatile Domain Adaptation},
  author    = {Jin, Ying and Wang, Ximei and Long, Mingsheng and Wang, Jianmin},
  booktitle = {European Conference on Computer Vision},
  year      = {2020}
}""",
    "mdd": """\
@inproceedings{zhang2019bridging,
  title     = {Bridging Theory and Algorithm for Domain Adaptation},
  author    = {Zhang, Yuchen and Liu, Tianle and Long, Mingsheng and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year      = {2019}
}""",
    "mmd": """\
@inproceedings{long2015learning,
  title     = {Learning Transferable Features with Deep Adaptation Networks},
  author    = {Long, Mingsheng and Cao, Yue and Wang, Jianmin and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year      = {2015}
}""",
    "mean_teacher": """\
@inproceedings{tarvainen2017mean,
  title     = {Mean Teachers Are Better Role Models: Weight-Averaged Consistency Targets Improve Semi-Supervised Deep
               Learning Results},
  author    = {Tarvainen, Antti and Valpola, Harri},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2017}
}""",
    "toalign": """\
@inproceedings{wei2021toalign,
  title     = {{ToAlign}: Task-oriented Alignment for Unsupervised Domain Adaptation},
  author    = {Wei, Guoqiang and Lan, Cuiling and Zeng, Wenjun and Zhang, Zhizheng and Chen, Zhibo},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2021}
}""",
    "gvb": """\
@inproceedings{cui2020gradually,
  title     = {Gradually Vanishing Bridge for Adversarial Domain Adaptation},
  author    = {Cui, Shuhao and Wang, Shuhui and Zhuo, Junbao and Su, Chi and Huang, Qingming and Tian, Qi},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020}
}""",
}
