"""Training of adv3d: ours on ICT-3D (``ict``) and the paper's (``paper``)."""
