"""The flagship codec: a beta-VAE with slots, quantised inside training, whose bytes become memory vectors.

::

    states "layers tokens hidden"
      --Pooler-->      slots "slots width"          learned queries read the sender's states
      --Bottleneck-->  z_hat "slots dims"           mu, log_var -> sample -> one to four bits per dimension
      --bits-->        payload                      bit 0 of every slot first: a prefix is a coarser code of every slot
      --Projector-->   memory "slots hidden"        each slot becomes one vector of the receiver's embedding space

The idea of handing an agent's state on as a beta-VAE latent comes from ILCP (arXiv 2605.00593); slots, the discrete
code and the training through the receiver are this library's.
"""

from ilcp_codecs.vae.codec import VaeCodec, VaeNetwork
from ilcp_codecs.vae.config import VaeConfig

__all__ = ["VaeCodec", "VaeConfig", "VaeNetwork"]
