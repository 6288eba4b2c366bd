"""Citations of the steps, as BibTeX; `metaalign_hf.coordination` itself imports nothing else of this package."""

from __future__ import annotations

from ..citations import cite
from ..target_losses.information_maximization import CITATION as SHOT

__all__: list[str] = []

METAALIGN = """\
@inproceedings{wei2021metaalign,
  title     = {{MetaAlign}: Coordinating Domain Alignment and Classification for Unsupervised Domain Adaptation},
  author    = {Wei, Guoqiang and Lan, Cuiling and Zeng, Wenjun and Chen, Zhibo},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2021}
}"""

OPTIMISM = """\
@inproceedings{daskalakis2018training,
  title     = {Training {GANs} with Optimism},
  author    = {Daskalakis, Constantinos and Ilyas, Andrew and Syrgkanis, Vasilis and Zeng, Haoyang},
  booktitle = {International Conference on Learning Representations},
  year      = {2018}
}"""

GAME = """\
@inproceedings{acuna2022domain,
  title     = {Domain Adversarial Training: A Game Perspective},
  author    = {Acuna, David and Law, Marc T. and Zhang, Guojun and Fidler, Sanja},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}"""

PGA = """\
@inproceedings{phan2024enhancing,
  title     = {Enhancing Domain Adaptation through Prompt Gradient Alignment},
  author    = {Phan, Hoang and Tran, Lam and Tran, Quyen and Le, Trung},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024}
}"""

SDAT = """\
@inproceedings{rangwani2022closer,
  title     = {A Closer Look at Smoothness in Domain Adversarial Training},
  author    = {Rangwani, Harsh and Aithal, Sumukh K and Mishra, Mayank and Jain, Arihant and Babu, R. Venkatesh},
  booktitle = {International Conference on Machine Learning},
  year      = {2022}
}"""

cite("coordination/metaalign", METAALIGN)
cite("coordination/remembered", OPTIMISM)
cite("coordination/extragradient", GAME)
cite("coordination/heun", GAME)
cite("coordination/pga", PGA)
cite("coordination/target_only", SHOT)
cite("coordination/smoothing", SDAT)
