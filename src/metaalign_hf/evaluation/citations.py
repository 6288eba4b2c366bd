"""Citations of the validators, as BibTeX."""

__all__ = ["AGREEMENT", "A_DISTANCE", "BNM", "DEV", "ENTROPY", "MUTUAL_INFORMATION", "SND", "UNBIASED_MEAN_TEACHER"]

ENTROPY = """\
@inproceedings{morerio2018minimal,
  title     = {Minimal-Entropy Correlation Alignment for Unsupervised Deep Domain Adaptation},
  author    = {Morerio, Pietro and Cavazza, Jacopo and Murino, Vittorio},
  booktitle = {International Conference on Learning Representations},
  year      = {2018}
}"""

MUTUAL_INFORMATION = """\
@article{musgrave2022three,
  title   = {Three New Validators and a Large-Scale Benchmark Ranking for Unsupervised Domain Adaptation},
  author  = {Musgrave, Kevin and Belongie, Serge and Lim, Ser-Nam},
  journal = {arXiv preprint arXiv:2208.07360},
  year    = {2022}
}"""

SND = """\
@inproceedings{saito2021tune,
  title     = {Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft Neighborhood Density},
  author    = {Saito, Kuniaki and Kim, Donghyun and Teterwak, Piotr and Sclaroff, Stan and Darrell, Trevor and Saenko,
               Kate},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year      = {2021}
}"""

BNM = """\
@inproceedings{cui2020towards,
  title     = {Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label Insufficient
               Situations},
  author    = {Cui, Shuhao and Wang, Shuhui and Zhuo, Junbao and Li, Liang and Huang, Qingming and Tian, Qi},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2020}
}"""

DEV = """\
@inproceedings{you2019towards,
  title     = {Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation},
  author    = {You, Kaichao and Wang, Ximei and Long, Mingsheng and Jordan, Michael I.},
  booktitle = {International Conference on Machine Learning},
  year      = {2019}
}"""

A_DISTANCE = """\
@article{bendavid2010theory,
  title   = {A Theory of Learning from Different Domains},
  author  = {Ben-David, Shai and Blitzer, John and Crammer, Koby and Kulesza, Alex and Pereira, Fernando and Vaughan,
             Jennifer Wortman},
  journal = {Machine Learning},
  volume  = {79},
  year    = {2010}
}"""

AGREEMENT = """\
@inproceedings{sajjadi2016regularization,
  title     = {Regularization With Stochastic Transformations and Perturbations for Deep Semi-Supervised Learning},
  author    = {Sajjadi, Mehdi and Javanmardi, Mehran and Tasdizen, Tolga},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2016}
}"""

UNBIASED_MEAN_TEACHER = """\
@inproceedings{deng2021unbiased,
  title     = {Unbiased Mean Teacher for Cross-Domain Object Detection},
  author    = {Deng, Jinhong and Li, Wen and Chen, Yuhua and Duan, Lixin},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}"""
