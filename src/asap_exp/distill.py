"""Stage 2: compile a teacher's layers. `python -m asap_exp.distill +layer=frozen`"""

from asap_exp import stages
from asap_exp.config import DistillConfig
from asap_exp.distillation.compile import distill

if __name__ == "__main__":
    stages.main("distill", DistillConfig, distill)
