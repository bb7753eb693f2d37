"""Stage 3: measure a compiled model. `python -m asap_exp.evaluate`"""

from asap_exp import stages
from asap_exp.config import EvaluateConfig
from asap_exp.evaluation.evaluate import evaluate

if __name__ == "__main__":
    stages.main("evaluate", EvaluateConfig, evaluate)
